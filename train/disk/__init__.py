"""Arrays on disk as memory maps: reserved before they are written, checked before they are believed."""
