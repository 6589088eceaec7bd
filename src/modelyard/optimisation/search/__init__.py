"""The job kind `search`: chains of steps are tried as child jobs, and the best within the budget is chosen."""
