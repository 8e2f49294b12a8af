"""The semantic test: are pictures of an object more similar to its spoken name than other pictures?

`word_pictures` reads tables of spoken words and pictures, `scores` computes the measure.
"""
