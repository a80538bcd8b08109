#include "client/cpp/program/bench/chart.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace expertd::client {
namespace {

constexpr double kHeight = 300;
constexpr double kLeft = 78, kRight = 18, kTop = 14, kBottom = 48;
constexpr double kBarHeight = 22, kBarGap = 12, kLabelWidth = 110;
constexpr int kTicks = 6;

// Values to pixels along one axis.
class Scale {
 public:
  Scale(const Axis& axis, double low, double high, double from, double to)
      : logarithmic_(axis.logarithmic), low_(low), high_(high), from_(from), to_(to) {
    if (logarithmic_) {
      low_ = std::log10(low);
      high_ = std::log10(high);
    }
    if (high_ - low_ < 1e-9) high_ = low_ + (logarithmic_ ? 0.3 : std::max(1.0, low_));
    ticks_ =
        axis.ticks.empty() ? RoundTicks(axis, low, logarithmic_ ? std::pow(10, high_) : high_, kTicks) : axis.ticks;
  }
  double operator()(double value) const {
    const double at = logarithmic_ ? std::log10(value) : value;
    return from_ + (at - low_) / (high_ - low_) * (to_ - from_);
  }
  const std::vector<Tick>& ticks() const { return ticks_; }

 private:
  const bool logarithmic_;
  double low_, high_, from_, to_;
  std::vector<Tick> ticks_;
};

bool Drawable(const LineChart& chart, const std::pair<double, double>& point) {
  return std::isfinite(point.first) && std::isfinite(point.second) && (!chart.x.logarithmic || point.first > 0) &&
         (!chart.y.logarithmic || point.second > 0);
}

struct Range {
  double low = INFINITY, high = -INFINITY;
  void Add(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
};

std::string Open(double width, double height, absl::string_view what) {
  return absl::StrFormat("<svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-label=\"%s\">", width, height, Escape(what));
}

std::string Text(double x, double y, absl::string_view anchor, absl::string_view text, absl::string_view css = "tick") {
  return absl::StrFormat("<text class=\"%s\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>", css, x, y, anchor,
                         Escape(text));
}

std::string Straight(double x1, double y1, double x2, double y2, absl::string_view css) {
  return absl::StrFormat("<line class=\"%s\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>", css, x1, y1, x2, y2);
}

std::string YTitle(absl::string_view title) {
  return absl::StrFormat(
      "<text class=\"title\" transform=\"translate(14 %.0f) rotate(-90)\" text-anchor=\"middle\">%s</text>",
      (kTop + kHeight - kBottom) / 2, Escape(title));
}

std::string Grid(const LineChart& chart, const Scale& x, const Scale& y) {
  std::string out;
  const double bottom = kHeight - kBottom, right = chart.width - kRight;
  for (const Tick& tick : y.ticks()) {
    const double at = y(tick.at);
    absl::StrAppend(&out, Straight(kLeft, at, right, at, "grid"), Text(kLeft - 8, at + 4, "end", tick.label));
  }
  for (const Tick& tick : x.ticks()) {
    const double at = x(tick.at);
    absl::StrAppend(&out, Straight(at, kTop, at, bottom, "grid"), Text(at, bottom + 18, "middle", tick.label));
  }
  absl::StrAppend(&out, Straight(kLeft, bottom, right, bottom, "axis"),
                  Text((kLeft + right) / 2, kHeight - 8, "middle", chart.x.title, "title"), YTitle(chart.y.title));
  return out;
}

std::string OneLine(const LineChart& chart, const Line& line, std::size_t index, const Scale& x, const Scale& y) {
  std::string path, dots;
  for (std::size_t i = 0; i < line.points.size(); ++i) {
    if (!Drawable(chart, line.points[i])) continue;
    const double px = x(line.points[i].first), py = y(line.points[i].second);
    absl::StrAppendFormat(&path, "%s%.1f %.1f", path.empty() ? "M" : " L", px, py);
    if (!chart.marks) continue;
    const std::string tip =
        line.tips.empty() ? absl::StrCat(line.name, ": ", ShortNumber(line.points[i].second)) : line.tips[i];
    absl::StrAppendFormat(&dots, "<circle class=\"fill c%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"4\" data-tip=\"%s\"/>", index,
                          px, py, Escape(tip));
  }
  return absl::StrFormat("<g data-line=\"%d\"><path class=\"line c%d%s\" d=\"%s\"/>%s</g>", index, index,
                         line.dashed ? " dashed" : "", path, dots);
}

std::string Rules(const LineChart& chart, const Scale& x, const Scale& y) {
  std::string out;
  if (chart.horizontal.has_value()) {
    const double at = y(chart.horizontal->at);
    absl::StrAppend(&out, Straight(kLeft, at, chart.width - kRight, at, "rule"),
                    Text(kLeft + 6, at - 6, "start", chart.horizontal->label, "note"));
  }
  if (chart.vertical.has_value()) {
    const double at = x(chart.vertical->at);
    const bool left = at > chart.width / 2;
    absl::StrAppend(&out, Straight(at, kTop, at, kHeight - kBottom, "rule"),
                    Text(at + (left ? -6 : 6), kTop + 12, left ? "end" : "start", chart.vertical->label, "note"));
  }
  return out;
}

std::string Legend(const std::vector<std::string>& names) {
  std::string out = "<div class=\"legend\">";
  for (std::size_t i = 0; i < names.size(); ++i) {
    absl::StrAppendFormat(&out, "<button type=\"button\" data-toggle=\"%d\"><i class=\"swatch c%d\"></i>%s</button>", i,
                          i, Escape(names[i]));
  }
  return out + "</div>";
}

}  // namespace

std::string RenderLines(const LineChart& chart) {
  Range xs, ys;
  std::vector<std::string> names;
  for (const Line& line : chart.lines) {
    names.push_back(line.name);
    for (const auto& point : line.points) {
      if (!Drawable(chart, point)) continue;
      xs.Add(point.first);
      ys.Add(point.second);
    }
  }
  if (xs.low > xs.high) return "<p class=\"empty\">nothing was answered</p>";
  if (chart.horizontal.has_value()) ys.Add(chart.horizontal->at);
  if (chart.vertical.has_value()) xs.Add(chart.vertical->at);
  if (!chart.y.logarithmic) ys.Add(0);
  if (chart.y.logarithmic) ys = {ys.low / 1.25, ys.high * 1.25};  // room above and below
  const Scale x(chart.x, xs.low, xs.high, kLeft, chart.width - kRight),
      y(chart.y, ys.low, ys.high, kHeight - kBottom, kTop);
  std::string out =
      Open(chart.width, kHeight, absl::StrCat(chart.y.title, " against ", chart.x.title)) + Grid(chart, x, y);
  for (std::size_t i = 0; i < chart.lines.size(); ++i) out += OneLine(chart, chart.lines[i], i, x, y);
  return absl::StrCat("<figure>", out, Rules(chart, x, y), "</svg>", Legend(names), "</figure>");
}

std::string RenderStacks(const StackChart& chart) {
  double longest = 0;
  for (const auto& [label, values] : chart.bars) {
    longest = std::max(longest, std::accumulate(values.begin(), values.end(), 0.0));
  }
  if (longest <= 0) return "<p class=\"empty\">nothing was answered</p>";
  const double height = kTop + static_cast<double>(chart.bars.size()) * (kBarHeight + kBarGap) + 34;
  const double right = chart.width - kRight, per_unit = (right - kLabelWidth) / longest;
  std::string out = Open(chart.width, height, "where the time went");
  for (const Tick& tick : RoundTicks({.micros = true}, 0, longest, kTicks)) {
    const double at = kLabelWidth + tick.at * per_unit;
    absl::StrAppend(&out, Straight(at, kTop, at, height - 30, "grid"), Text(at, height - 14, "middle", tick.label));
  }
  double y = kTop + kBarGap / 2;
  for (const auto& [label, values] : chart.bars) {
    double x = kLabelWidth;
    absl::StrAppend(&out, Text(kLabelWidth - 8, y + kBarHeight - 7, "end", label));
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double width = std::max(0.0, values[i] * per_unit);
      absl::StrAppendFormat(&out,
                            "<rect class=\"fill c%d\" data-line=\"%d\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" "
                            "height=\"%.0f\" data-tip=\"%s\"/>",
                            i, i, x, y, width, kBarHeight,
                            Escape(absl::StrCat(label, ": ", chart.parts[i], " ", DurationText(values[i]))));
      x += width;
    }
    y += kBarHeight + kBarGap;
  }
  return absl::StrCat("<figure>", out, "</svg>", Legend(chart.parts), "</figure>");
}

std::string RenderBars(const BarChart& chart) {
  double highest = 0;
  for (const auto& [label, value] : chart.bars) highest = std::max(highest, value);
  if (highest <= 0) return "<p class=\"empty\">nothing was answered</p>";
  const double bottom = kHeight - kBottom, right = kHalf - kRight;
  const Scale y({}, 0, highest, bottom, kTop);
  std::string out = Open(kHalf, kHeight, absl::StrCat(chart.y_title, " by ", chart.x_title));
  for (const Tick& tick : y.ticks()) {
    absl::StrAppend(&out, Straight(kLeft, y(tick.at), right, y(tick.at), "grid"),
                    Text(kLeft - 8, y(tick.at) + 4, "end", tick.label));
  }
  const double step = (right - kLeft) / static_cast<double>(chart.bars.size());
  const double width = std::min(80.0, step * 0.8);
  for (std::size_t i = 0; i < chart.bars.size(); ++i) {
    const auto& [label, value] = chart.bars[i];
    const double middle = kLeft + step * (static_cast<double>(i) + 0.5);
    absl::StrAppendFormat(
        &out, "<rect class=\"fill c0\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" rx=\"2\" data-tip=\"%s\"/>",
        middle - width / 2, y(value), width, bottom - y(value), Escape(absl::StrCat(label, ": ", ShortNumber(value))));
    absl::StrAppend(&out, Text(middle, bottom + 18, "middle", label));
  }
  absl::StrAppend(&out, Straight(kLeft, bottom, right, bottom, "axis"),
                  Text((kLeft + right) / 2, kHeight - 8, "middle", chart.x_title, "title"), YTitle(chart.y_title));
  return absl::StrCat("<figure>", out, "</svg></figure>");
}

std::vector<Tick> RoundTicks(const Axis& axis, double low, double high, int most) {
  const auto label = [&](double at) { return axis.micros ? DurationText(at) : ShortNumber(at); };
  std::vector<Tick> ticks;
  if (axis.logarithmic) {
    const bool wide = std::log10(high / low) > 2.5;  // decades only
    for (double decade = std::pow(10, std::floor(std::log10(low))); decade <= high; decade *= 10) {
      for (const double step : {1.0, 2.0, 5.0}) {
        const double at = decade * step;
        if (at >= low && at <= high && (step == 1.0 || !wide)) ticks.push_back({at, label(at)});
      }
    }
    return ticks;
  }
  const double raw = (high - low) / most, decade = std::pow(10, std::floor(std::log10(raw)));
  const auto steps = {1.0, 2.0, 5.0, 10.0};
  const double step = decade * *std::find_if(steps.begin(), steps.end(), [&](double s) { return s * decade >= raw; });
  for (double i = std::ceil(low / step); i * step <= high * (1 + 1e-9); ++i) {
    ticks.push_back({i * step, label(i * step)});
  }
  return ticks;
}

std::string ShortNumber(double value) {
  constexpr std::pair<double, const char*> kSuffixes[] = {{1e9, "G"}, {1e6, "M"}, {1e3, "k"}};
  for (const auto& [size, suffix] : kSuffixes) {
    if (std::abs(value) >= size) return absl::StrFormat("%.4g%s", std::round(value / size * 1000) / 1000, suffix);
  }
  return absl::StrFormat("%.3g", value);
}

std::string DurationText(double us) {
  if (us >= 1e6) return absl::StrFormat("%.3g s", us * 1e-6);
  return us >= 1e3 ? absl::StrFormat("%.3g ms", us * 1e-3) : absl::StrFormat("%.3g us", us);
}

std::string Escape(absl::string_view text) {
  return absl::StrReplaceAll(text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}, {"'", "&#39;"}});
}

}  // namespace expertd::client
