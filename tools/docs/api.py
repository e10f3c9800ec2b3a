"""Signatures that can be read, and tables of arguments.

nbdev writes a signature with the full path of every type, as many arguments to a line as fit, and leaves the
docstring as text. Here each argument gets a line, types their last names, and the docstring's sections
(Args, Returns, Raises, …) become tables and paragraphs.
"""
import ast
import re

SIGNATURE = re.compile(r"```python\n(def .*?)\n```", re.DOTALL)      # nbdev writes classes so, too
SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises):\n((?:[ ]{4}.*\n?|\n(?=[ ]{4}))+)", re.MULTILINE)
ENTRY = re.compile(r"^(\*{0,2}\w[\w.]*): +(.*(?:\n[ ]+.*)*)", re.MULTILINE)
MODULES = re.compile(r"\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])")


def arguments_of(spec):
    "The arguments of a parsed signature, each as (name with its stars, type, default)."
    text = lambda node: "" if node is None else ast.unparse(node)
    positional = [*spec.posonlyargs, *spec.args]
    defaults = [None] * (len(positional) - len(spec.defaults)) + spec.defaults
    found = [("", arg, default) for arg, default in zip(positional, defaults)]
    if spec.vararg: found.append(("*", spec.vararg, None))
    elif spec.kwonlyargs: found.append(("*", ast.arg(""), None))
    found += [("", arg, default) for arg, default in zip(spec.kwonlyargs, spec.kw_defaults)]
    if spec.kwarg: found.append(("**", spec.kwarg, None))
    return [(star + arg.arg, MODULES.sub("", text(arg.annotation)), text(default)) for star, arg, default in found]


def signature(function, arguments):
    "The signature of a parsed function in one line where it fits, else with a line for each argument."
    equals = lambda kind: " = " if kind else "="
    typed = [name + (f": {kind}" if kind else "") + (equals(kind) + default if default else "") for name, kind, default in arguments]
    is_class = function.name[0].isupper()
    result = "" if is_class or not function.returns else " -> " + MODULES.sub("", ast.unparse(function.returns))
    head = f"{'class' if is_class else 'def'} {function.name}("
    line = f"{head}{', '.join(typed)}){result}"
    return line if len(line) <= 90 else f"{head}\n" + "".join(f"    {one},\n" for one in typed) + f"){result}"


def row(*cells):
    "One row of a Markdown table."
    return "| " + " | ".join(re.sub(r"\s+", " ", cell).strip().replace("|", "\\|") for cell in cells) + " |"


def table(body, arguments):
    "The entries of a section `body` as a table: the name, the type and default where they are known, the meaning."
    entries = ENTRY.findall(re.sub(r"^[ ]{4}", "", body, flags=re.MULTILINE))
    types = {name: " = ".join(filter(None, about)) for name, *about in arguments}
    code = lambda text: f"`{text}`" if text else ""
    rows = [row(code(name), code(types.get(name, "")), text) for name, text in entries]
    return "\n".join([row("argument", "type = default", "meaning"), "|---|---|---|", *rows])


def section(match, arguments):
    "One section of a docstring."
    title, body = match[1], match[2]
    if title in ("Args", "Attributes"): return f"::: {{.arguments}}\n{table(body, arguments)}\n:::\n"
    text = re.sub(r"^[ ]{4}", "", body, flags=re.MULTILINE).strip()
    if title == "Raises": text = " ".join(f"`{kind}`: {' '.join(why.split())}" for kind, why in ENTRY.findall(text)) or text
    return f"**{title}** {text}\n"


def tabulated(text):
    "What show_doc wrote about one name, made readable."
    shown = SIGNATURE.search(text)
    if not shown: return text
    try: [function] = ast.parse(re.sub(r"=<.*?>", "=...", shown[1]) + " ...").body      # =<factory>: no expression
    except SyntaxError: return text
    arguments = arguments_of(function.args)
    text = SECTION.sub(lambda match: section(match, arguments), text)
    return text.replace(shown[0], f"```python\n{signature(function, arguments)}\n```")


def tabulate(nb):
    "Make everything in the notebook that show_doc wrote readable."
    for cell in nb["cells"]:
        if not re.search(r"^show_doc\(", cell["source"], re.MULTILINE): continue
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "text/markdown" in data: data["text/markdown"] = tabulated("".join(data["text/markdown"]))
