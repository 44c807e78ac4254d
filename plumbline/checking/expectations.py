"""What a prompt may call for, as its column `expects` says: that it be refused, or that it be answered."""

REFUSAL, COMPLIANCE = "refusal", "compliance"
EXPECTATIONS = (REFUSAL, COMPLIANCE)
