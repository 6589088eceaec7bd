"""One file a step, numbered; `make migration MESSAGE="what changed"` writes the next."""
