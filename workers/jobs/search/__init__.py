"""`auto`: candidates are made and measured one by one, each kept at once, and the best under the budget wins."""
