"""How long a test waits for what must happen."""

# Far longer than the busiest machine needs: who has waited so long has met something that hangs.
PATIENCE_S = 120.0
