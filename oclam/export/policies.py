"""Policies that need neither the repository nor its data.

    policy = HubPolicy.from_pretrained("folder or user/name")
    agent = Agent(policy, policy.card.frame_stack)
"""

from oclam.export.hub import Hub
from oclam.policies.files import Card
from oclam.policies.networks import Policy


class HubPolicy(Policy, Hub):
    """A policy with its description, `card`.

    card: the entries of `oclam.policies.files.Card`.
    """

    def __init__(self, card: dict, origin: dict):
        described = Card(**card)
        super().__init__(described.actor(), described.decoder())
        self.card, self.origin = described, origin
