"""Region features of images: extract them, collect published files, store and read them."""
