package main

import (
	"encoding/json"
	"math"
	"os"
	"slices"
)

// quantiles are in ms; nothing where nothing was seen.
func quantiles(values []int64) map[string]float64 {
	if len(values) == 0 {
		return nil
	}
	slices.Sort(values)
	at := func(fraction float64) float64 {
		rank := int(math.Ceil(fraction*float64(len(values)))) - 1
		return math.Round(float64(values[max(0, rank)])/1e3) / 1e3
	}
	return map[string]float64{"p50": at(.5), "p95": at(.95), "p99": at(.99), "p999": at(.999), "max": at(1)}
}

func printJSON(value any) error {
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", " ")
	return encoder.Encode(value)
}
