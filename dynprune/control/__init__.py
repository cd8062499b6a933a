"""Usage statistics, the policy that decides what to compute, and the controller that publishes it."""
