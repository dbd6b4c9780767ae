"""What the command line can do: the verbs that are a function of their settings, and what `--help` says of all."""

from __future__ import annotations

from dataclasses import dataclass

HELP = """\
usage: hsae VERB [CONFIG.toml] [--key value …]

  harvest    run a language model over text, keep a hook point's activations
  train      train sparse autoencoders on them, with any learning rule

  inspect    look at a run, or at one latent: hsae inspect --latent 27
  browse     walk, search and sort the latents of a run in the terminal
  serve      the same in a web browser, over many runs, with your own text
  interpret  explain every latent, and score how well the explanation holds

  evaluate   splice SAEs into the language model: what does it lose?
  compare    hsae compare RUN RUN: metrics side by side, latents matched
  ablate     take a latent out of the model: what does it predict worse?
  steer      add a latent's direction while the model writes

  verify     read every byte of stores and runs: is anything damaged?
  repair     hsae repair STORE: harvest just the damaged shards again

  export     hsae export RUN --to saelens, sparsify, … (see --help)
  import     hsae import DIR: a SAELens, sparsify or dictionary_learning SAE
  push       a run to the Hugging Face hub; pull brings one from there
  paper      reproduce the Hebbian SAE paper on a store, with a report
  lab        surgery, alignment, hybrid-lm, nm-hebb: other Hebbian systems

hsae VERB --help lists the keys of a verb. A config file sets them in a
section of the verb's name, such as [train]; flags override it.
Stores and runs go to cache/ in the working folder, or to $HSAE_CACHE.
"""


@dataclass(frozen=True)
class Verb:
    """What a verb does: a function `(settings, console)` that prints, in the module `home`; it may give an exit code.

    Attributes:
        home: the module that has both.
        config: the class of the settings.
        function: the function's name.
        words: the field that takes the words before the first flag; empty: the one word there is a config file.
    """

    home: str
    config: str
    function: str
    words: str = ""


VERBS = {
    "inspect": Verb("hsae.inspect", "InspectConfig", "inspect"),
    "browse": Verb("hsae.browse", "BrowseConfig", "browse"),
    "serve": Verb("hsae.serve", "ServeConfig", "serve"),
    "interpret": Verb("hsae.interpret", "InterpretConfig", "interpret"),
    "compare": Verb("hsae.compare", "CompareConfig", "compare", words="runs"),
    "ablate": Verb("hsae.intervene", "AblateConfig", "ablate"),
    "steer": Verb("hsae.intervene", "SteerConfig", "steer"),
    "verify": Verb("hsae.verify", "VerifyConfig", "verify", words="paths"),
    "repair": Verb("hsae.verify", "RepairConfig", "repair", words="path"),
    "export": Verb("hsae.export", "ExportConfig", "export", words="run"),
    "import": Verb("hsae.importing", "ImportConfig", "import_sae", words="folder"),
    "push": Verb("hsae.sharing", "PushConfig", "push", words="run"),
    "pull": Verb("hsae.sharing", "PullConfig", "pull", words="repository"),
    "paper": Verb("hsae.paper", "PaperConfig", "paper"),
}

LAB_HELP = """\
usage: hsae lab EXPERIMENT [CONFIG.toml] [--key value …]

  surgery    write, remove or move a memory in a weight matrix, and verify it
  alignment  how far learning signals point the Hebbian way, and why
  hybrid-lm  a language model that learns by backpropagation, Hebb, or both
  nm-hebb    CNNs with a Hebbian regulariser, then metric learning
  all        all four, as one report

hsae lab EXPERIMENT --help lists the keys of an experiment. A config file sets
them in a section such as [lab.surgery]. Reports go to cache/lab.
"""

LAB = {
    "surgery": Verb("hsae.lab.surgery", "SurgeryConfig", "surgery", words="operation"),
    "alignment": Verb("hsae.lab.alignment", "AlignmentConfig", "alignment", words="experiments"),
    "hybrid-lm": Verb("hsae.lab.hybrid_lm", "HybridLMConfig", "hybrid_lm", words="parts"),
    "nm-hebb": Verb("hsae.lab.nm_hebb", "NMHebbConfig", "nm_hebb", words="parts"),
    "all": Verb("hsae.lab.every", "AllConfig", "every"),
}
