"""Images at rest: the data sets, their three parts, and the defender's small draws from them."""
