"""Discriminators: scores of sentences against expert sentences, fitted offline and frozen (METHOD §2)."""

from aapa.discriminator.base import Discriminator, Frozen, Kind, Origin, Trunk
from aapa.discriminator.cosine import CosineDiscriminator
from aapa.discriminator.expert_cache import ExpertCache
from aapa.discriminator.fit import FitMaterial, FitSettings, examine, fit_sentence_discriminator
from aapa.discriminator.polar import (
    Comparison,
    PolarDiscriminator,
    RewardModelView,
    calibrate_reward_model,
    examine_reward_model,
)
from aapa.discriminator.quality import QualityCard
from aapa.discriminator.sentence import SentenceDiscriminator
from aapa.discriminator.store import freeze, load

__all__ = [
    "Comparison",
    "CosineDiscriminator",
    "Discriminator",
    "ExpertCache",
    "FitMaterial",
    "FitSettings",
    "Frozen",
    "Kind",
    "Origin",
    "PolarDiscriminator",
    "QualityCard",
    "RewardModelView",
    "SentenceDiscriminator",
    "Trunk",
    "calibrate_reward_model",
    "examine",
    "examine_reward_model",
    "fit_sentence_discriminator",
    "freeze",
    "load",
]
