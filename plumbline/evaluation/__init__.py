"""What is measured of a policy: the verifier's verdicts, win rates, KL, and the intervals of them all."""
