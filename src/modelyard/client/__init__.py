"""The SDK: `Yard` speaks to a platform over HTTP alone. Used by the command line, by examples and by users' programs.

It knows no database, no engine and no model library; what a platform decides, it only asks for and shows.
"""

from modelyard.client.answer import Answer
from modelyard.client.profile import Profile
from modelyard.client.yard import Yard

__all__ = ["Answer", "Profile", "Yard"]
