"""Speed against the compact oracle; each benchmark checks its result first."""
