"""One extension of search-r3-mteb of each kind."""
