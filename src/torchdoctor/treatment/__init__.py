"""Further training: constraints (Eq. 5-7), other remedies, and the control arm beside them."""
