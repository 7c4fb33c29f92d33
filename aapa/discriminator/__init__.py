"""Discriminators: scores of sentences against expert sentences, fitted offline and frozen (METHOD §2)."""

from aapa.discriminator.base import Discriminator, Origin, Trunk
from aapa.discriminator.cosine import CosineDiscriminator
from aapa.discriminator.expert_cache import ExpertCache
from aapa.discriminator.fit import FitMaterial, FitSettings, examine, fit_sentence_discriminator
from aapa.discriminator.quality import QualityCard
from aapa.discriminator.sentence import SentenceDiscriminator
from aapa.discriminator.store import freeze, load

__all__ = [
    "CosineDiscriminator",
    "Discriminator",
    "ExpertCache",
    "FitMaterial",
    "FitSettings",
    "Origin",
    "QualityCard",
    "SentenceDiscriminator",
    "Trunk",
    "examine",
    "fit_sentence_discriminator",
    "freeze",
    "load",
]
