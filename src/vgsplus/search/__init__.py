"""Search in a corpus: pictures by speech and captions by pictures, on a page in the browser."""
