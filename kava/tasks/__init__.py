"""Tasks: where rows come from, how an example is divided, and by which metrics answers are judged."""
