"""The import graph of the package."""

from __future__ import annotations

import grimp


def test_there_is_no_import_circle():
    """No module of iu_listen imports itself through other modules; imports inside functions count, too.

    Fails when: a base class imports the factory that imports its subclasses.
    """
    graph = grimp.build_graph("iu_listen")
    imports = {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
    # Modules that import nothing that is left are removed until nothing changes; what remains is in a circle, or
    # imports one.
    while leaves := {module for module, imported in imports.items() if not imported}:
        imports = {module: imported - leaves for module, imported in imports.items() if module not in leaves}
    assert not imports
