"""Region features of images: extract them, collect published ones, store and read them."""
