"""Jobs that train: their rows, their starts, the stage that trains with what it leaves in the store, and the choice."""
