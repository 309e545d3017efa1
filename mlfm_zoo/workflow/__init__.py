"""From data to a published checkpoint: recipe, launch, evaluate, collect, cost, card, publish."""
