# Runs one test of a solution inside the sandbox. File 3 holds the solution and, for a call, the function and its arguments.
import json
import os
import sys

with os.fdopen(3, encoding="utf-8") as source:
    test = json.load(source)
sys.argv = ["solution.py"]
space = {"__name__": "__main__", "__builtins__": __builtins__, "__file__": "solution.py"}
if test["function"] is None:
    exec(compile(test["program"], "solution.py", "exec"), space)
else:
    # What the solution prints is not its result.
    answer = os.dup(1)
    os.dup2(2, 1)
    # Solutions of this form are written as if these were there.
    exec("from typing import *\nimport bisect, collections, functools, heapq, itertools, math, re, string\n"
         "from collections import *\nfrom functools import *\nfrom heapq import *\nfrom bisect import *\nfrom math import *", space)
    space["__name__"] = "solution"
    exec(compile(test["program"], "solution.py", "exec"), space)
    name = test["function"]
    function = space.get(name)
    if function is None or name not in test["program"]:
        function = getattr(space["Solution"](), name)
    elif "Solution" in space and hasattr(space["Solution"], name):
        function = getattr(space["Solution"](), name)
    result = function(*test["arguments"])

    def plain(value):
        try:
            return list(value)
        except TypeError:
            return str(value)

    with os.fdopen(answer, "w", encoding="utf-8") as output:
        json.dump(result, output, default=plain)
