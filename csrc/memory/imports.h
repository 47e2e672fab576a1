// Puts a function of ours in the place of one that a loaded library imports.
//
// A library calls what it imports through a table of addresses, which the dynamic linker fills. Only the library's own
// table changes: everybody else still calls the original.
#pragma once

#include <string_view>

namespace ringred {

// The libraries whose file name begins with `library` call `replacement` from now on where they imported `symbol`.
// Returns how many places were changed: none if there is no such library, or it does not import the symbol.
int replace_import(std::string_view library, std::string_view symbol, void* replacement);

}  // namespace ringred
