# Put before each jq expression about a node, after library.jq and the table `conditions` (conditions.json).
# A node's faults, and the conditions that it should show: see conditions.json. `silent` is one that tells nothing.
def faults: fault | split(",");
def silent: any(faults[]; . == "unknown");
def wanted:
  conditions as $all
  | [faults[] | $all.faults[.] // empty] as $ill
  | [$all.always[], (.status.conditions // [])[].type, $ill[].type] | unique | map(
      . as $type
      | [$ill[] | select(.type == $type)][-1] // (if $all.calm[$type] then $all.calm[$type] + {type: $type} else empty end)
    );
def shows($one): any((.status.conditions // [])[]; .type == $one.type and .status == $one.status and .reason == $one.reason);
def up_to_date: . as $node | all(wanted[]; . as $one | $node | shows($one));
