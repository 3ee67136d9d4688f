"""autoforward: servers inside a dev container, on localhost of the host.

The command line (`devup`, `devdown`, `autoforward`) and the `PORT_EVENT` stream are the public interface;
`SPEC.md` is their normative description.
"""

__version__ = "0.1.0"
