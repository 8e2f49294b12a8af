"""Words in speech: boundaries found by the attention of the CLS token, compared with those of alignments.

`boundaries` finds words, `scores` compares them with a reference, `evaluate` does both for every layer.
"""
