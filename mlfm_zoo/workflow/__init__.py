"""From data to a published checkpoint: recipes, evaluation, cost, cards, upload."""
