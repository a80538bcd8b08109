// Charts as SVG text, for a page that needs no external files. Colours are CSS classes (c0, c1, ...) of that page;
// every mark carries data-tip, the words that the page shows when a pointer is over it.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace expertd::client {

struct Tick {
  double at = 0;
  std::string label;
};

// Of a chart: the page's whole breadth, or half of it. In units that are about pixels, so that letters stay one size.
inline constexpr double kWhole = 1110, kHalf = 540;

struct Axis {
  std::string title;
  bool logarithmic = false;  // values of 0 and less are left out
  bool micros = false;       // values are microseconds: labels say us, ms or s
  std::vector<Tick> ticks;   // empty: round numbers
};

struct Line {
  std::string name;
  std::vector<std::pair<double, double>> points;  // in the order in which they are joined
  bool dashed = false;
  std::vector<std::string> tips;  // one a point; empty: name and value
};

struct Rule {
  double at = 0;
  std::string label;
};

struct LineChart {
  Axis x, y;
  std::vector<Line> lines;
  std::optional<Rule> horizontal, vertical;  // dashed, with a label
  bool marks = true;                         // a dot at each point
  double width = kHalf;
};

// Bars that lie on their side, each a stack of microseconds.
struct StackChart {
  std::vector<std::string> parts;
  std::vector<std::pair<std::string, std::vector<double>>> bars;  // label, a value for each part
  double width = kHalf;
};

// Upright bars.
struct BarChart {
  std::string x_title, y_title;
  std::vector<std::pair<std::string, double>> bars;
};

std::string RenderLines(const LineChart& chart);
std::string RenderStacks(const StackChart& chart);
std::string RenderBars(const BarChart& chart);

// Round numbers of the axis in [low, high]: at most about `most` of them; 1, 2 and 5 of each decade when logarithmic.
std::vector<Tick> RoundTicks(const Axis& axis, double low, double high, int most);
// "1.2k", "350", "0.25", "3M".
std::string ShortNumber(double value);
// Microseconds as "850 us", "2.31 ms", "1.20 s".
std::string DurationText(double us);
// Text that may stand in HTML and in its attributes.
std::string Escape(absl::string_view text);

}  // namespace expertd::client
