#include "engine/check/check.h"

#include <algorithm>

#include "engine/check/inspection.h"
#include "engine/check/repair.h"
#include "engine/image/locking.h"

namespace pcow {
namespace {

// While a writer is at work, the check may see a slot half written, a layer directory that is being
// replaced, or a block that is freed and used again. Only findings of two successive looks count.
Result<CheckReport> check_in_use(const std::shared_ptr<File>& file, const Progress& progress) {
  constexpr int kLooks = 3;
  std::vector<Finding> before;
  for (int look = 1;; look++) {
    Inspection inspection(file, true);
    PCOW_TRY(inspection.run(progress));
    CheckReport& report = inspection.report;
    if (!report.damages) return std::move(report);
    if (look > 1) {
      std::erase_if(report.findings, [&](const Finding& finding) {
        return finding.severity == Severity::kDamage &&
               std::none_of(before.begin(), before.end(), [&](const Finding& f) {
                 return f.message == finding.message && f.file_offset == finding.file_offset;
               });
      });
      const auto confirmed = std::count_if(
          report.findings.begin(), report.findings.end(),
          [](const Finding& finding) { return finding.severity == Severity::kDamage; });
      if (look == kLooks || static_cast<uint64_t>(confirmed) == report.damages) {
        if (report.damages <= kListedFindings) report.damages = static_cast<uint64_t>(confirmed);
        return std::move(report);
      }
    }
    before = report.findings;
  }
}

}  // namespace

Result<CheckReport> check_image(const std::string& path, const CheckOptions& options,
                                const Progress& progress) {
  if (options.repair) {
    auto file = open_locked(path, options.observer);
    if (!file) return file.error();
    return repair(*file, options, progress);
  }
  auto file = File::open(path, false, options.observer);
  if (!file) return file.error();
  for (;;) {
    if ((*file)->is_locked_by_other()) return check_in_use(*file, progress);
    Inspection inspection(*file, false);
    PCOW_TRY(inspection.run(progress));
    if (inspection.report.findings.empty()) return std::move(inspection.report);
    // A writer may have opened and closed the image meanwhile.
    if ((*file)->is_locked_by_other()) continue;
    auto now = read_superblock(**file);
    if (!now || !inspection.superblock || now->generation <= inspection.newest)
      return std::move(inspection.report);
  }
}

}  // namespace pcow
