"""Images in tar shards (WebDataset layout) with an index, so that a sample is one range of bytes, local or remote."""
