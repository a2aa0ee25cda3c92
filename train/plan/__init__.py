"""What a run needs, before it is started: sizes, memory, work and time, and the first rows of its data."""
