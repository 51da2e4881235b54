"""What `import gradclip` costs a fresh interpreter: alone, and where NumPy is there already."""


def timeraw_import_gradclip():
    return "import gradclip"


def timeraw_import_gradclip_after_numpy():
    return "import gradclip", "import numpy"


def timeraw_import_numpy():
    return "import numpy"
