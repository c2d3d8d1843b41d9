"""Random scenes of four domains, drawn from a seed: the same seed always gives the same scene.

Each domain is a function (seed, detail, variety) → Scene; albedos are linear light, lengths mm, rates Hz.
"""

from endomust_core.simulation.domains.colon import colon
from endomust_core.simulation.domains.laparo import laparo
from endomust_core.simulation.domains.sinus import sinus
from endomust_core.simulation.domains.stomach import stomach

DOMAINS = {"colon": colon, "sinus": sinus, "laparo": laparo, "stomach": stomach}
TRAINED = ("colon", "sinus", "laparo")  # what networks train and are calibrated on; the others show what carries over
