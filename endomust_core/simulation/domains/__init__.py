"""Random scenes of three domains, drawn from a seed: the same seed always gives the same scene.

Each domain is a function (seed, detail) → Scene; albedos are linear light, lengths mm, rates Hz.
"""

from endomust_core.simulation.domains.colon import colon
from endomust_core.simulation.domains.laparo import laparo
from endomust_core.simulation.domains.sinus import sinus

DOMAINS = {"colon": colon, "sinus": sinus, "laparo": laparo}
