#include "csrc/memory/imports.h"

#include <elf.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>

namespace ringred {
namespace {

#if defined(__x86_64__)
constexpr unsigned address_relocations[] = {R_X86_64_JUMP_SLOT, R_X86_64_GLOB_DAT, R_X86_64_64};
#elif defined(__aarch64__)
constexpr unsigned address_relocations[] = {R_AARCH64_JUMP_SLOT, R_AARCH64_GLOB_DAT, R_AARCH64_ABS64};
#else
constexpr unsigned address_relocations[] = {~0u};  // none: nothing is replaced
#endif

struct Search {
  std::string_view library, symbol;
  void* replacement;
  int replaced = 0;
};

// What a library's dynamic section tells about its imports.
struct Imports {
  const ElfW(Sym) * symbols = nullptr;
  const char* names = nullptr;
  struct Table {
    const ElfW(Rela) * begin = nullptr;
    std::size_t bytes = 0;
  };
  Table tables[2];
};

Imports imports_of(const dl_phdr_info& library, const ElfW(Dyn) * entry) {
  Imports found;
  // The dynamic linker has made addresses of these, on most machines.
  const auto address = [&](ElfW(Addr) value) { return value < library.dlpi_addr ? value + library.dlpi_addr : value; };
  for (; entry->d_tag != DT_NULL; ++entry) {
    switch (entry->d_tag) {
      case DT_SYMTAB:
        found.symbols = reinterpret_cast<const ElfW(Sym)*>(address(entry->d_un.d_ptr));
        break;
      case DT_STRTAB:
        found.names = reinterpret_cast<const char*>(address(entry->d_un.d_ptr));
        break;
      case DT_JMPREL:
        found.tables[0].begin = reinterpret_cast<const ElfW(Rela)*>(address(entry->d_un.d_ptr));
        break;
      case DT_PLTRELSZ:
        found.tables[0].bytes = entry->d_un.d_val;
        break;
      case DT_RELA:
        found.tables[1].begin = reinterpret_cast<const ElfW(Rela)*>(address(entry->d_un.d_ptr));
        break;
      case DT_RELASZ:
        found.tables[1].bytes = entry->d_un.d_val;
        break;
      default:
        break;
    }
  }
  return found;
}

bool is_address(unsigned type) {
  for (const unsigned one : address_relocations)
    if (type == one) return true;
  return false;
}

std::uintptr_t page_of(std::uintptr_t place) {
  const auto bytes = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  return place / bytes * bytes;
}

// Whole pages that are read-only after the dynamic linker has done its work: not the last one, if it holds more.
bool is_protected(const dl_phdr_info& library, std::uintptr_t place) {
  for (int i = 0; i < library.dlpi_phnum; ++i) {
    const ElfW(Phdr) & segment = library.dlpi_phdr[i];
    const std::uintptr_t begin = library.dlpi_addr + segment.p_vaddr;
    if (segment.p_type == PT_GNU_RELRO && place >= page_of(begin) && place < page_of(begin + segment.p_memsz))
      return true;
  }
  return false;
}

bool write(const dl_phdr_info& library, std::uintptr_t place, void* value) {
  const auto page_bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  void* page = reinterpret_cast<void*>(page_of(place));
  const bool closed = is_protected(library, place);
  if (closed && mprotect(page, page_bytes, PROT_READ | PROT_WRITE) != 0) return false;
  std::atomic_ref(*reinterpret_cast<void**>(place)).store(value, std::memory_order_release);
  if (closed) mprotect(page, page_bytes, PROT_READ);
  return true;
}

void replace_in(const dl_phdr_info& library, const Imports& imports, Search& search) {
  if (imports.symbols == nullptr || imports.names == nullptr) return;
  for (const Imports::Table& table : imports.tables) {
    for (std::size_t i = 0; i < table.bytes / sizeof(ElfW(Rela)); ++i) {
      const ElfW(Addr) offset = table.begin[i].r_offset;
      const auto info = table.begin[i].r_info;
      const auto& symbol = imports.symbols[ELF64_R_SYM(info)];
      if (is_address(static_cast<unsigned>(ELF64_R_TYPE(info))) && search.symbol == imports.names + symbol.st_name)
        search.replaced += write(library, library.dlpi_addr + offset, search.replacement) ? 1 : 0;
    }
  }
}

int visit(dl_phdr_info* library, std::size_t, void* data) {
  auto& search = *static_cast<Search*>(data);
  const std::string_view path = library->dlpi_name == nullptr ? "" : library->dlpi_name;
  if (!path.substr(path.rfind('/') + 1).starts_with(search.library)) return 0;
  for (int i = 0; i < library->dlpi_phnum; ++i) {
    if (library->dlpi_phdr[i].p_type != PT_DYNAMIC) continue;
    const auto* dynamic = reinterpret_cast<const ElfW(Dyn)*>(library->dlpi_addr + library->dlpi_phdr[i].p_vaddr);
    replace_in(*library, imports_of(*library, dynamic), search);
  }
  return 0;
}

}  // namespace

int replace_import(std::string_view library, std::string_view symbol, void* replacement) {
  Search search{library, symbol, replacement};
  dl_iterate_phdr(visit, &search);
  return search.replaced;
}

}  // namespace ringred
