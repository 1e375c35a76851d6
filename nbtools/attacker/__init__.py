"""The attacker's wing: triggers, poisoning, and attackers who know the score. No defence may see any of it."""

ATTACKS = ("badnets", "blended", "sig", "wanet")
"""The names in `nbtools.attacker.triggers.TRIGGERS`; here, so that a wrong name is refused without torch."""
