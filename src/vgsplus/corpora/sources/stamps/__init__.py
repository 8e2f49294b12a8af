"""The stamps of Tux Paint: `corpus` prepares them, `splits` assigns splits."""
