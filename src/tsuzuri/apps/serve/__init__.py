"""A trained model served: the API of completions, the playground, the page of runs."""
