"""The families in transformers' Auto classes, without importing transformers.

Importing this package must register its families, and must not cost the seconds that torch and transformers take: the
command line shows its help, and checks its arguments, without them. So each family is registered in two steps:

1. `register_lazily()` gives `AutoConfig` a stand-in for each config class, as soon as the module of `AutoConfig` is
   there: at once, or when somebody else imports it.
2. Whatever is asked of a stand-in imports `hf_diffusion_forcing.registration`, which registers the real classes over
   it. Every way to a model by its checkpoint (`AutoModelForCausalLM`, `AutoTokenizer`, `pipeline()`) begins with its
   config, so that is early enough.

Importing the real classes in step 1 would be simpler, and wrong: transformers imports the module of `AutoConfig` in the
middle of other modules, which ours need as a whole.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .class_names import recognise_class_names
from .families import ADAPTED, FAMILIES

AUTO_CONFIG = "transformers.models.auto.configuration_auto"
"""The module of `AutoConfig`; those of the other Auto classes import it first."""

REGISTRATION = ".registration"
"""The module that registers the real classes when it is imported."""


class StandIn(type):
    """Metaclass of a config class's stand-in: what it is asked, the real class answers."""

    model_type: str

    def real_class(cls) -> type:
        """The registered config class of the stand-in's family."""
        import_module(REGISTRATION, __package__)
        registered = sys.modules[AUTO_CONFIG].CONFIG_MAPPING[cls.model_type]
        if registered is cls:
            raise RuntimeError(
                f"{__package__}{REGISTRATION} did not register {cls.__name__}. If transformers was imported a second "
                "time (its modules deleted from sys.modules), start a new process instead."
            )
        return registered

    def __getattr__(cls, name: str) -> Any:
        # Those who look at every class there is (inspect, pickle, mock) ask for special names alone.
        if name.startswith("__"):
            raise AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}")
        return getattr(cls.real_class(), name)

    def __call__(cls, *args, **kwargs) -> Any:
        return cls.real_class()(*args, **kwargs)


STAND_INS = tuple(
    StandIn(
        f"{name}Config",
        (),
        {
            "__doc__": f"Stands in for `{__package__}.{name}Config`.",
            "__module__": __name__,
            "model_type": model_type,
        },
    )
    for model_type, name in (FAMILIES | ADAPTED).items()
)
"""One for each family. transformers finds a config class by its name too, so they have the real classes' names."""


def register_stand_ins(module: ModuleType) -> None:
    """Give `AutoConfig` the stand-ins of the families, unless it has the real classes.

    Args:
        module: that of `AutoConfig`, all of it.
    """
    # A registration that has only begun does not count: another thread may ask for a family before it ends.
    if STAND_INS[0].model_type in module.CONFIG_MAPPING:
        return
    for stand_in in STAND_INS:
        # transformers itself knows some of the families.
        module.AutoConfig.register(stand_in.model_type, stand_in, exist_ok=True)


class AfterImport(MetaPathFinder):
    """Calls a function with a module when that has been imported, whichever finder finds it.

    Args:
        name: of the module.
        then: called with it, once, by the thread that imports it, which still holds the module's import lock: it must
            not import anything that another thread may hold.
    """

    def __init__(self, name: str, then: Callable[[ModuleType], None]):
        self.name, self.then = name, then

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        finders = list(sys.meta_path)
        # Only those behind this one: what stands before it has been asked, and may be another hook that asks all.
        for finder in finders[finders.index(self) + 1 :] if self in finders else ():
            spec = finder.find_spec(fullname, path, target) if hasattr(finder, "find_spec") else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = LoadedThen(spec.loader, self.done)
                return spec
        return None

    def done(self, module: ModuleType) -> None:
        """The module is there: the finder leaves. (Where importing it failed, it stays for the next attempt.)"""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        self.then(module)


class LoadedThen(Loader):
    """A module's own loader, and what is to be done when it has executed the module.

    Args:
        loader: the module's own. It is what the module shows as its loader.
        then: called with the module.
    """

    def __init__(self, loader: Loader, then: Callable[[ModuleType], None]):
        self.loader, self.then = loader, then

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.then(module)


def prepare(module: ModuleType) -> None:
    """Everything that the module of `AutoConfig` needs to know of the families."""
    recognise_class_names(module.PreTrainedConfig)
    register_stand_ins(module)


def register_lazily() -> None:
    """Register the stand-ins, now or when `AutoConfig` is imported."""
    finder = AfterImport(AUTO_CONFIG, prepare)
    sys.meta_path.insert(0, finder)
    # Once its package is there, another thread may be looking for the module at this moment, without the finder.
    # `import_module` waits for that thread, or imports the module first.
    if AUTO_CONFIG.rpartition(".")[0] in sys.modules:
        module = import_module(AUTO_CONFIG)
        if finder in sys.meta_path:
            finder.done(module)
