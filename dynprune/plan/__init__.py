"""Plans: everything one forward needs for one choice of active units, immutable."""
