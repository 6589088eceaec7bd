from modelyard.client import Yard as Yard

__version__: str
QUIET: dict[str, str]
