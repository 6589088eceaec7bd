"""Networks of recipes. Each file stands alone (torch only): it is copied into the artefact of every model trained with it."""
