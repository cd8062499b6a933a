"""From an ordinary model to a program whose layers can run on any choice of active units."""
