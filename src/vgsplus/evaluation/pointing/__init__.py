"""Where in a picture and when in a sound a model finds what they share (`localise`), and whether it is right.

`words` reads where the objects are that words name, `evaluate` compares both (the pointing game).
"""
