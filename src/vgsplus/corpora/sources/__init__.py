"""Sources of corpora, one module each: `prepare_NAME(inputs, root, ...)` writes the corpus NAME to `root`.

A source yields a `CaptionEntry` (see `corpora.format`) for every caption and calls `prepare.add_captions`, or
`lists.prepare_lists` for lists of captions of images. Its command is in `cli.corpora`.
"""
