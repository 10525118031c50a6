"""Presidio's pattern recognisers as the peer of `bench.phi`: no model, no context, no download; or None."""

import importlib.util
import os
from collections.abc import Callable

_NAMES = (
    "UsSsnRecognizer",
    "CreditCardRecognizer",
    "IbanRecognizer",
    "EmailRecognizer",
    "UrlRecognizer",
    "IpRecognizer",
    "DateRecognizer",
    "PhoneRecognizer",
    "UsNpiRecognizer",
    "UsMbiRecognizer",
    "MedicalLicenseRecognizer",
    "UsLicenseRecognizer",
    "UsBankRecognizer",
    "UsPassportRecognizer",
    "UsItinRecognizer",
)


def build_presidio() -> Callable[[str], list[tuple[int, int]]] | None:
    if importlib.util.find_spec("presidio_analyzer") is None:
        return None
    os.environ.setdefault("TLDEXTRACT_PUBLIC_SUFFIX_LIST_URLS", "")  # else it fetches a list at the first address
    module = importlib.import_module("presidio_analyzer.predefined_recognizers")
    classes = [getattr(module, name) for name in _NAMES if hasattr(module, name)]
    recognizers = [c(supported_regions=("US",)) if c.__name__ == "PhoneRecognizer" else c() for c in classes]

    def analyze(text: str) -> list[tuple[int, int]]:
        results = (r.analyze(text, r.supported_entities, None) or [] for r in recognizers)
        return [(result.start, result.end) for found in results for result in found]

    return analyze
