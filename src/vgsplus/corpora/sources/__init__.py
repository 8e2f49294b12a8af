"""Sources of corpora, a module each: `prepare_NAME(inputs, root, ...)` writes the corpus NAME to `root`.

A new source needs a module here that yields a `CaptionEntry` (see `corpora.format`) for every caption and
calls `corpora.prepare.prepare`, or `lists.prepare_lists` if it lists captions of images with regions; and a
command in `cli.corpora`.
"""
